"""Shapes on the wire: strict on the way in, explicit on the way out; one file per noun."""
