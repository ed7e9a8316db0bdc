"""Every family of `tf_keras.applications`."""
