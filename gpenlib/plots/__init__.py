"""Figures: rows in, matplotlib Figure out; nothing is computed here."""
