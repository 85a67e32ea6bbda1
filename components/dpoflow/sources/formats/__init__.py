"""One module a layout of preference data; `registry` knows them all."""
