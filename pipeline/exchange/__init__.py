"""Features and annotations in the formats of other trainers: `export` writes them, `import` dates the rows of theirs."""
