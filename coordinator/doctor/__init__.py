"""`coordinator doctor`: checks a coordinator's folder, store, blobs, broker and tasks, and advises on what is wrong."""
