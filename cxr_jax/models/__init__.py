"""Networks. They know arrays, not tasks."""
