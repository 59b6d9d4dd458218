"""bundled: files that slices hand to the sandbox. Nothing of posttrain imports them."""
