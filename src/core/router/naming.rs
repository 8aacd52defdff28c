//! Which models a request may be answered by, by the name it gives.

use super::{Ask, Refusal, RefusalReason, Router, UntouchedReason, Verdict};
use crate::config::UnknownModel;
use crate::fleet::{ModelId, ModelKind};
use crate::openai::Api;

impl Router {
    /// Models that may answer: one by name, or all of the API's kind.
    pub(crate) fn allowed_models(&self, ask: &Ask<'_>) -> Result<Vec<ModelId>, Verdict> {
        let kind = match ask.api {
            Api::Embeddings | Api::Pooling => ModelKind::Embed,
            _ => ModelKind::Generate,
        };
        // What is asked of a model that is named is its instances' to judge.
        let any_kind = ask.api.is_guessed();
        let fleet = &self.config.fleet;
        let of_kind =
            || -> Vec<ModelId> { fleet.models_by_id().filter(|(_, m)| m.kind == kind).map(|(i, _)| i).collect() };
        let Some(name) = ask.prompt.model.as_deref().filter(|name| !self.config.names_no_model(Some(name))) else {
            return match ask.api {
                // A virtual name always means the same model: ids of one tokenizer are none of another's.
                Api::Tokenize | Api::Pooling if ask.prompt.model.is_some() => {
                    let default = fleet.pool(self.config.envoy.default_pool).map(|pool| pool.model);
                    let of_kind = of_kind();
                    let first = default.filter(|model| of_kind.contains(model)).or(of_kind.first().copied());
                    first.map(|model| vec![model]).ok_or(Verdict::Untouched(UntouchedReason::OtherPath))
                }
                Api::Tokenize | Api::Pooling | Api::Named => Err(Verdict::Untouched(UntouchedReason::OtherPath)),
                _ => Ok(of_kind()),
            };
        };
        let served = || fleet.pools.iter().find(|p| p.served_model == name).map(|p| p.model);
        match fleet.model_named(name).or_else(|| fleet.model_with_adapter(name)).or_else(served) {
            Some(model) if any_kind || fleet.model(model).is_some_and(|m| m.kind == kind) => Ok(vec![model]),
            Some(_) => {
                let use_ = if kind == ModelKind::Embed { "embeddings" } else { "text generation" };
                Err(Verdict::Refused(Refusal::new(
                    404,
                    RefusalReason::WrongKind,
                    format!("The model `{name}` does not serve {use_}."),
                )))
            }
            None if ask.api.is_guessed() => Err(Verdict::Untouched(UntouchedReason::OtherPath)),
            // A server may know it by a name that is not configured, and no limit would be known there.
            None if self.config.unknown_model == UnknownModel::PassThrough
                && !self.refuses_unread(ask.policy, ask.constraints.as_ref()) =>
            {
                Err(Verdict::Untouched(UntouchedReason::UnknownModel))
            }
            None => {
                let message = format!("The model `{name}` does not exist.");
                let refusal = Refusal::new(404, RefusalReason::UnknownModel, message);
                Err(Verdict::Refused(Refusal { param: Some("model"), ..refusal }))
            }
        }
    }

    /// A request that names another model than the one that holds what it refers to: only that one's instance knows it.
    pub(super) fn held_by_another(&self, ask: &Ask<'_>, models: &[ModelId]) -> Option<Refusal> {
        let (_, pool) = self.config.fleet.pool_of(ask.holder?)?;
        let holder = self.config.fleet.model_of(pool).filter(|_| !models.contains(&pool.model))?;
        let id = ask.prompt.previous_response_id.as_deref().unwrap_or_default();
        let message =
            format!("The response `{id}` is stored by the model `{}` and cannot be continued by another.", holder.name);
        Some(Refusal::new(404, RefusalReason::OtherModel, message))
    }
}
