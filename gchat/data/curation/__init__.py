"""From raw documents to documents worth training on: rules, de-duplication, scores, a report."""
