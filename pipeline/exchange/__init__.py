"""Features and annotations in other trainers' formats: `export` writes them, `import` adds times to the rows of theirs."""
