"""What the truth is worth: decoupled training beside backprop and the rivals that step late, at real lags."""
