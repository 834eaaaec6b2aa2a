"""Where records come from: the splits of data sets, completed, and a user's own files.

`splits` opens what is trained on and evaluated; `films` and `volumes` are the two doors of
`predict`, which find and read a user's files and say what is to be written. What a record lacks is
completed by other trained runs (`lungs`).
"""
