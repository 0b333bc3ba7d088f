"""Shared library of all services."""
