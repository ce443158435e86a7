"""The version of this package, which its files state."""

VERSION = "0.1.0"
