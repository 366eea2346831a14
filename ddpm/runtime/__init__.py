"""Devices, files, progress, signals, and program startup and errors."""
