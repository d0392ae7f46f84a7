"""What is handed to others: on the hub (`pushing`, `watching`) and back from it (`pulling`)."""
