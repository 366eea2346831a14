"""The U-Net, its layers, and its weights as one vector."""
