"""The HTTP face: handed an encoder and a store, it answers queries and shows a page. It imports no encoder."""
