"""Many images through one model: listed, scheduled, named, written, and recorded so that a run can go on."""
