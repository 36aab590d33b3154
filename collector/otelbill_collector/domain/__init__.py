"""Pure values and functions of the billing domain. No I/O, no float, no random, no SQL, no clock of its own."""
