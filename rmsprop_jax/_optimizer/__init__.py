"""The optimizer: RMSProp as Optax transformations. It and the sweep never import each other."""
