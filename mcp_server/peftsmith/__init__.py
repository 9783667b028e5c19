"""peftsmith: from "fine-tune this model on my data" to an adapter that is proven and can be served."""

__version__ = "0.1.0"
