"""Turns data sets on disk into arrays, one file per format."""
