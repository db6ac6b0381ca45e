"""`coordinator doctor`: what is wrong with a coordinator's folder, store, blobs, broker and tasks, and what to do."""
