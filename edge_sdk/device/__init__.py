"""The device itself: what it is (profile), what it can spare now (probe), and whether it may work (policy)."""
