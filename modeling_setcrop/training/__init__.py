"""Training: arguments, the engine, the momentum teacher."""
