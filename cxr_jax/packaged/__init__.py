"""What a wheel carries beside the code: `configs/`, to which a link lies here."""
