//! `routebalance instance`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::{BasePath, Fault, InstanceOptions, PoolProfile, RateLimit, Tls, start};
use crate::prompts::PromptSet;

/// `routebalance instance`: an emulated vLLM server.
#[derive(Clone, Debug, clap::Args)]
pub struct InstanceArgs {
    /// Port to listen on
    #[arg(long)]
    pub port: u16,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
    /// Served model name; the pool's if not given
    #[arg(long)]
    pub model: Option<String>,
    /// Further names that are served
    #[arg(long)]
    pub alias: Vec<String>,
    /// LoRA adapters that are served; answers of one carry its name
    #[arg(long)]
    pub adapter: Vec<String>,
    /// A pool of the configuration, whose speed and limits the instance has
    #[arg(long)]
    pub profile: String,
    /// 2 is twice as fast as the real thing
    #[arg(long, default_value_t = 1.0)]
    pub time_scale: f64,
    /// Answer with 503 when so many requests are running or waiting
    #[arg(long)]
    pub max_queued: Option<u32>,
    /// Answer 401 below /v1 to whoever does not send `Authorization: Bearer KEY`; several keys may be given
    #[arg(long, value_name = "KEY")]
    pub api_key: Vec<String>,
    /// The server's certificate, and those that lead from it to its authority, in PEM: the instance speaks TLS
    #[arg(long, value_name = "FILE", requires = "ssl_keyfile")]
    pub ssl_certfile: Option<PathBuf>,
    /// The certificate's private key in PEM
    #[arg(long, value_name = "FILE", requires = "ssl_certfile")]
    pub ssl_keyfile: Option<PathBuf>,
    /// Where the API answers in the place of /v1, such as /api/paas/v4
    #[arg(long, value_name = "PATH", default_value_t)]
    pub base_path: BasePath,
    /// Answer 429 beyond so many requests in so many seconds, such as 20/1
    #[arg(long, value_name = "COUNT/SECONDS")]
    pub rate_limit: Option<RateLimit>,
    /// Answer 404 on /metrics
    #[arg(long)]
    pub no_metrics: bool,
    /// What goes wrong
    #[arg(
        long,
        default_value = "none",
        help = "What goes wrong: refuse, stall, hang, 5xx, stream-error[:EVENTS], reset[:EVENTS], metrics-stale, metrics-broken, \
                metrics-absent, metrics-slow[:MS]"
    )]
    pub fault: Fault,
}

impl InstanceArgs {
    /// The instance that they ask for.
    ///
    /// # Errors
    /// The certificate or its key is of no use.
    pub fn options(self, mut pool: PoolProfile, answers: Option<Arc<PromptSet>>) -> anyhow::Result<InstanceOptions> {
        if let Some(model) = self.model {
            pool.served_model = model;
        }
        let files = self.ssl_certfile.zip(self.ssl_keyfile);
        Ok(InstanceOptions {
            listen: SocketAddr::new(self.host, self.port),
            aliases: self.alias,
            adapters: self.adapter,
            time_scale: self.time_scale,
            answers,
            max_queued: self.max_queued,
            api_keys: self.api_key,
            tls: files.map(|(certificates, key)| Tls::from_files(&certificates, &key)).transpose()?,
            base_path: self.base_path,
            rate_limit: self.rate_limit,
            has_metrics: !self.no_metrics,
            fault: self.fault,
            ..InstanceOptions::new(pool)
        })
    }
}

/// Runs an instance until Ctrl-C. `resolve` turns `--profile` into what it names.
///
/// # Errors
/// An unknown profile, a port that is taken, a certificate or a key that is of no use.
pub async fn run(
    args: InstanceArgs,
    resolve: impl FnOnce(&str) -> anyhow::Result<PoolProfile>,
    answers: Option<Arc<PromptSet>>,
) -> anyhow::Result<()> {
    let pool = resolve(&args.profile)?;
    let options = args.options(pool, answers)?;
    let model = options.pool.served_model.clone();
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    let base_path = options.base_path.clone();
    let instance = start(options).await?;
    println!("{model} on {scheme}://{}{base_path}", instance.address());
    tokio::signal::ctrl_c().await?;
    instance.stop().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use routebalance_core::fleet::{LatencyProfile, Limits, ModelKind};

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: InstanceArgs,
    }

    fn read(words: &str) -> Result<InstanceOptions, String> {
        let words = ["instance", "--port", "8000", "--profile", "p"].into_iter().chain(words.split_whitespace());
        let command = Command::try_parse_from(words).map_err(|problem| problem.to_string())?;
        let pool = PoolProfile {
            model_name: "m".into(),
            served_model: "m".into(),
            kind: ModelKind::Generate,
            profile: LatencyProfile {
                tpot_ms: 1.0,
                tpot_growth_per_running: 0.0,
                tpot_growth_per_thousand_context_tokens: 0.0,
                prefill_tokens_per_second: 1.0,
                overhead_ms: 0.0,
            },
            limits: Limits { max_running: 1, kv_tokens: 1, max_model_len: 1 },
        };
        command.args.options(pool, None).map_err(|problem| format!("{problem:#}"))
    }

    #[test]
    fn what_guards_an_instance_is_read() {
        let plain = read("").unwrap();
        assert!(plain.api_keys.is_empty() && plain.tls.is_none() && plain.rate_limit.is_none() && plain.has_metrics);
        assert_eq!(plain.base_path.to_string(), "/v1");
        let words = "--api-key a --api-key b --base-path /api/paas/v4 --rate-limit 20/1 --no-metrics";
        let provider = read(words).unwrap();
        assert_eq!(provider.api_keys, ["a", "b"]);
        assert_eq!(provider.base_path.to_string(), "/api/paas/v4");
        assert_eq!(provider.rate_limit, "20/1".parse().ok());
        assert!(!provider.has_metrics);
    }

    #[test]
    fn what_cannot_be_read_is_one_sentence() {
        for (words, sentence) in [
            ("--base-path v1", "base path `v1`: give a path such as /api/paas/v4, without host, query and escapes"),
            ("--rate-limit 20", "rate limit `20`: give COUNT/SECONDS with more than 0 seconds, such as 20/1 or 5/0.25"),
            ("--ssl-certfile a.pem", "required arguments were not provided:\n  --ssl-keyfile <FILE>"),
            ("--ssl-keyfile a.pem", "required arguments were not provided:\n  --ssl-certfile <FILE>"),
            ("--ssl-certfile /gone/a.pem --ssl-keyfile /gone/b.pem", "/gone/a.pem cannot be read: No such file"),
        ] {
            let problem = read(words).unwrap_err();
            assert!(problem.contains(sentence), "{words}: {problem}");
        }
    }
}
