"""The library that every service of this repository builds on."""
