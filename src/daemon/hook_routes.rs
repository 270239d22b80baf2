//! Which webhooks are open, for whoever takes posts: slug → automation, without asking the loop.
//!
//! The loop brings this up to date in the same step in which the registry changes, so a secret that was replaced on disk
//! is refused as soon as the registry has the new file. Only slugs whose automation was touched are looked at again: the
//! cost of an edit, and that of a post, does not depend on how many automations there are.
//!
//! A slug that is not in here is closed: unknown, claimed twice, or of a manifest that is not valid now. A mistake here
//! opens a webhook to an old secret, or closes a good one.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use crate::core::json_schema::{BrokenSchema, Schema};
use crate::core::manifest::{Manifest, Webhook};
use crate::core::registry::Registry;
use crate::fire::Handle;

/// One open webhook.
#[derive(Debug)]
pub struct HookRoute {
    pub handle: Handle,
    /// It may say that the automation is disabled.
    pub manifest: Arc<Manifest>,
    pub webhook: Webhook,
    filter: OnceLock<Result<Schema, BrokenSchema>>,
}

impl HookRoute {
    /// The webhook's `filter`, compiled when it is first asked for.
    ///
    /// # Errors
    /// Not of a manifest that was found valid.
    pub fn filter(&self) -> Option<Result<&Schema, &BrokenSchema>> {
        let filter = self.webhook.filter.as_ref()?;
        Some(self.filter.get_or_init(|| Schema::compile(filter)).as_ref())
    }
}

/// See the module text.
#[derive(Debug, Default)]
pub struct HookRoutes {
    open: RwLock<HashMap<String, Arc<HookRoute>>>,
}

impl HookRoutes {
    /// The automation behind a slug.
    pub fn get(&self, slug: &str) -> Option<Arc<HookRoute>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(slug).cloned()
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes over what the registry says of the slugs that were touched.
    pub(super) fn follow(&self, registry: &mut Registry) {
        let touched = registry.take_touched_webhooks();
        if touched.is_empty() {
            return;
        }
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        for slug in touched {
            let route = registry.by_webhook(&slug).and_then(|automation| {
                let manifest = Arc::clone(automation.manifest.as_ref()?);
                let webhook = manifest.webhook()?.clone();
                let handle = automation.handle.clone();
                Some(Arc::new(HookRoute { handle, manifest, webhook, filter: OnceLock::new() }))
            });
            match route {
                Some(route) => open.insert(slug, route),
                None => open.remove(&slug),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::core::disk::{AppFolder, AutomationFolder, DiskBatch, FileContent, HandlerFile};
    use crate::fire::{AppId, AutomationId};

    fn manifest(slug: &str, more: &str) -> String {
        let hash = "ab".repeat(32);
        format!(
            r#"{{"name":"n","prompt":"p","generated":{{"by":"t","at":"now"}},"triggers":[{{"kind":"webhook","id":"{slug}","secretHash":"{hash}"{more}}}]}}"#
        )
    }

    fn seen(files: &[(&str, Option<String>)]) -> DiskBatch {
        use sha2::Digest;
        let automations = files.iter().map(|(id, text)| AutomationFolder {
            id: AutomationId::new(id).unwrap(),
            dir: PathBuf::from(id),
            present: text.is_some(),
            manifest: text.as_ref().map_or(FileContent::Absent, |text| FileContent::Bytes {
                bytes: Arc::from(text.as_bytes()),
                sha256: sha2::Sha256::digest(text.as_bytes()).into(),
            }),
            handler: HandlerFile::Absent,
        });
        let app = AppFolder {
            name: "a".to_owned(),
            app: Some(AppId::new("a").unwrap()),
            dir: PathBuf::from("a"),
            present: true,
            has_index_html: false,
            app_json: FileContent::Absent,
            automations: automations.collect(),
            complete: false,
            problems: Vec::new(),
        };
        DiskBatch { apps: vec![app], ..DiskBatch::default() }
    }

    #[test]
    fn a_slug_is_open_while_one_valid_automation_claims_it() {
        let (mut registry, routes) = (Registry::default(), HookRoutes::default());
        let mut step = |files: &[(&str, Option<String>)]| {
            registry.apply(seen(files));
            routes.follow(&mut registry);
            let of = |slug| routes.get(slug).map(|route| route.handle.automation.to_string());
            (of("s"), of("t"))
        };
        let open = |id: &str| Some(id.to_owned());
        assert_eq!(step(&[("x", Some(manifest("s", "")))]), (open("x"), None));
        assert_eq!(step(&[("y", Some(manifest("s", "")))]), (None, None), "claimed twice");
        assert_eq!(step(&[("y", Some(manifest("t", "")))]), (open("x"), open("y")), "both are free again");
        assert_eq!(step(&[("x", Some("{".to_owned()))]), (None, open("y")), "invalid");
        assert_eq!(step(&[("x", Some(manifest("s", "")))]), (open("x"), open("y")));
        assert_eq!(step(&[("x", Some(manifest("s", r#","pending":7"#)))]), (open("x"), open("y")), "still valid");
        assert_eq!(step(&[("x", None)]), (None, open("y")), "removed");
        assert_eq!(routes.len(), 1);
    }

    #[test]
    fn a_filter_is_compiled_once_for_each_manifest() {
        let (mut registry, routes) = (Registry::default(), HookRoutes::default());
        registry.apply(seen(&[("x", Some(manifest("s", r#","filter":{"type":"object"}"#)))]));
        routes.follow(&mut registry);
        let route = routes.get("s").unwrap();
        let filter = route.filter().unwrap().unwrap();
        assert!(filter.is_valid(&serde_json::json!({})) && !filter.is_valid(&serde_json::json!("text")));
        assert!(std::ptr::eq(filter, routes.get("s").unwrap().filter().unwrap().unwrap()));
    }
}
