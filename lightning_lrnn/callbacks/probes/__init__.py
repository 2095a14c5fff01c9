"""Measurements for callbacks: of layers while they train, of forecasts that need no model."""
