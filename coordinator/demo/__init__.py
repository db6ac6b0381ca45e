"""The main job on one machine: a broker, a coordinator and a fleet of real agents, each its own process."""
