"""Several optimizers behind one: what `compile` gets when networks train in turn.

Keras keeps, saves and restores the state of `model.optimizer` alone (on JAX a step's
state is four lists, and the third is `model.optimizer.variables`): an optimizer kept
anywhere else is never updated there, and lost on resume. So the members' variables are
concatenated here, in the members' order.
"""

import keras


@keras.saving.register_keras_serializable(package="kgen")
class Alternating(keras.optimizers.Optimizer):
    """One optimizer per network, each applied to its own network's gradients alone.

    ```python
    Alternating(generator=Adam(1e-4, beta_1=0.5), discriminator=Adam(4e-4, beta_1=0.5))
    ```
    `GenerativeModel.compile` hands the variables out: the member `generator` takes
    those of `model.generator`. `optimizers` lists the members, as Keras' callbacks
    (LearningRateScheduler, ReduceLROnPlateau, SwapEMAWeights, TensorBoard) expect.
    `iterations` and `learning_rate` are read from the first member; setting
    `learning_rate` sets that of each. Under `mixed_float16`, `compile` wraps the
    whole in a LossScaleOptimizer, so members must not scale the loss themselves.

    Args:
        name: Name of the composite.
        **optimizers: Network's attribute name on the model -> `keras.optimizers`
            instance, name ("adam") or config. No instance twice.
    """

    def __init__(self, name="alternating", **optimizers):
        if not optimizers:
            raise ValueError(
                "Alternating needs a member for each network, such as "
                "Alternating(generator='adam', discriminator='adam'); got none."
            )
        super().__init__(learning_rate=0.0, name=name)
        self.members = {k: keras.optimizers.get(o) for k, o in optimizers.items()}
        for network, member in self.members.items():
            if member.loss_scale_factor is not None or hasattr(
                member, "inner_optimizer"
            ):
                raise ValueError(
                    f"The optimizer of '{network}' scales the loss. Leave that to "
                    "compile(auto_scale_loss=True), which scales it for all members."
                )
        if len({id(member) for member in self.optimizers}) < len(self.members):
            raise ValueError(
                "Two networks share one optimizer instance; its moments would be "
                "mixed. Pass one instance each."
            )
        self._owner, self._built_for = {}, []

    @classmethod
    def of(cls, optimizer, **members):
        """`optimizer` itself if it is an Alternating; else one of the members, where
        None stands for another instance of `optimizer`'s configuration."""
        if isinstance(optimizer, dict):
            optimizer = keras.optimizers.deserialize(optimizer)
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a loss scaler
        if isinstance(optimizer, cls):
            return optimizer
        config = keras.optimizers.serialize(keras.optimizers.get(optimizer))
        another = keras.optimizers.deserialize
        return cls(**{k: o or another(config) for k, o in members.items()})

    @property
    def optimizers(self):
        return list(self.members.values())

    @property
    def variables(self):
        return [v for member in self.optimizers for v in member.variables]

    @property
    def learning_rate(self):
        return self.optimizers[0].learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        for member in self.optimizers:
            member.learning_rate = value

    @property
    def iterations(self):
        return self.optimizers[0].iterations

    def assign_variables(self, model):
        """Remembers which network of `model` (an attribute) each variable is of."""
        for network in self.members:
            if not hasattr(model, network):
                raise ValueError(
                    f"Alternating has an optimizer for '{network}', but "
                    f"{type(model).__name__} has no such network."
                )
            for v in getattr(model, network).variables:
                self._owner[id(v)] = network

    def _by_member(self, variables, *columns):
        """{network: rows of (variable, *columns)}, rows in the given order."""
        rows = {network: [] for network in self.members}
        for row in zip(variables, *columns, strict=True):
            if id(row[0]) not in self._owner:
                raise ValueError(
                    f"Variable {row[0].path} belongs to no network of this optimizer "
                    f"({', '.join(self.members)}). Compile the model with it first."
                )
            rows[self._owner[id(row[0])]].append(row)
        return rows

    def build(self, variables):
        if self.built:
            return
        for network, rows in self._by_member(variables).items():
            self.members[network].build([v for (v,) in rows])
        self._built_for = [*variables]
        super().build(variables)

    def apply(self, grads, trainable_variables=None):
        """Updates by the gradients that are not None, whosesoever they are."""
        if trainable_variables is None:
            trainable_variables = self._built_for
        elif not self.built:
            self.build(trainable_variables)
        for network, rows in self._by_member(trainable_variables, grads).items():
            rows = [(v, g) for v, g in rows if g is not None]
            if rows:
                self.members[network].apply([g for _, g in rows], [v for v, _ in rows])

    def finalize_variable_values(self, var_list):
        for network, rows in self._by_member(var_list).items():
            if rows:
                self.members[network].finalize_variable_values([v for (v,) in rows])

    def set_weights(self, weights):
        for variable, value in zip(self.variables, weights, strict=True):
            variable.assign(value)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {"name": self.name} | {k: serialize(o) for k, o in self.members.items()}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(
            **{
                k: keras.saving.deserialize_keras_object(v, custom_objects)
                for k, v in config.items()
            }
        )
