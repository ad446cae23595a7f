"""Crops where people already work: one module a system, each importing that system only when it is used."""
