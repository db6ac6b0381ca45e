"""Planning: from what a device can spare to the submodel that it gets; pure."""
