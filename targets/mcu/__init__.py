"""Microcontrollers: firmware built from a planned network, and the emulators that run it."""
