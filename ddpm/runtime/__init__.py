"""Devices, files, progress, and how a program starts and ends."""
