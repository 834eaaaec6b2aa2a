"""What can be told of a data set's classes without looking at the lungs, and films that come twice.

    python -m cxr_jax.data.audit NAME [--OPTION=VALUE ...] [--output=DIR]

`features` measures trivial things of a film (size, brightness, borders, text marks, file),
`shortcuts` asks a cross-validated forest what they tell of a class, `duplicates` looks for copies,
`films` collects both of a data set, `tables` counts, `report` says it, `stored` keeps the main
numbers beside a prepared set.
"""
