"""Draw the contract from the message types: schemas/asyncapi.yaml, docs/reference/task.md."""
