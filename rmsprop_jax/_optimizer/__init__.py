"""The optimizer: RMSProp as Optax transformations. It never imports the sweep, nor the sweep it."""
