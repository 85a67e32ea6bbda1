"""Where preferences come from: data files, their rows, and the formats rows are in."""
