"""Features and annotations in the formats of other trainers: what `export` writes and how `import` dates rows."""
