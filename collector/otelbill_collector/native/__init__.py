"""The native library: what is done to every span, in C over columns. Each module here wraps one C file.

Everything it does is defined by Python code elsewhere, which tests compare it with and which does the work where the
library is absent (no compiler at install time) or was built from other sources. See docs/decisions/0011-native.md.
"""
