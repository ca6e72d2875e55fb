"""Shaped links between processes of one machine."""
