"""The version of this copy of the project."""

VERSION = "0.1.0"
