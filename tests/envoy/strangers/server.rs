//! A server of somebody else at the address of an instance: it answers as its script says, and remembers what it was sent.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use routebalance_instance::Fault;
use routebalance_instance::network::{Connection, Listener, Network};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinHandle, JoinSet};

use crate::harness::{Gateway, eventually};
use crate::http;
use routebalance_core::fleet::InstanceId;

/// Time for what was written to be read before the connection closes.
const BEFORE_CLOSING: Duration = Duration::from_millis(50);

/// Questions for its metrics after which the answer to the first one is known to all workers.
const SCRAPES: usize = 3;

/// A request that a stranger has got.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    /// Whose place the stranger has taken.
    pub(crate) instance: InstanceId,
    pub(crate) path: String,
    pub(crate) body: Vec<u8>,
}

impl Post {
    /// Whether the body has this text somewhere.
    pub(crate) fn says(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.body).contains(text)
    }
}

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The next request may come.
    Stay,
    Close,
    /// Nothing, until the other side gives up.
    Wait,
}

/// What a stranger does with a request.
#[derive(Clone, Debug)]
pub(crate) struct Act {
    delay: Duration,
    /// Status line and headers; empty where there is no answer.
    head: String,
    /// The body as it is on the wire.
    body: Vec<u8>,
    then: Then,
}

impl Act {
    fn new(status: u16, headers: &str, body: Vec<u8>) -> Act {
        let head = format!("HTTP/1.1 {status} Scripted\r\n{headers}");
        Act { delay: Duration::ZERO, head, body, then: Then::Stay }
    }

    fn whole(status: u16, content_type: &str, body: Vec<u8>) -> Act {
        Act::new(status, &format!("content-type: {content_type}\r\ncontent-length: {}\r\n", body.len()), body)
    }

    /// A whole answer.
    pub(crate) fn json(status: u16, body: &Value) -> Act {
        Act::whole(status, "application/json", body.to_string().into_bytes())
    }

    /// Status 200, and nothing else.
    pub(crate) fn empty() -> Act {
        Act::whole(200, "application/json", Vec::new())
    }

    /// A whole answer in chunks, with a trailer behind it.
    pub(crate) fn with_trailer(body: &Value) -> Act {
        let headers = "content-type: application/json\r\ntransfer-encoding: chunked\r\ntrailer: x-checksum\r\n";
        Act::new(200, headers, format!("{}0\r\nx-checksum: 1\r\n\r\n", chunk(&body.to_string())).into_bytes())
    }

    /// A stream of events, a chunk for each.
    pub(crate) fn events<'a>(events: impl IntoIterator<Item = &'a str>) -> Act {
        let chunks: String = events.into_iter().map(chunk).collect();
        let headers = "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n";
        Act::new(200, headers, format!("{chunks}0\r\n\r\n").into_bytes())
    }

    /// The connection closes without an answer.
    pub(crate) fn nothing() -> Act {
        Act { delay: Duration::ZERO, head: String::new(), body: Vec::new(), then: Then::Close }
    }

    /// No answer ever, and the connection stays open.
    pub(crate) fn silence() -> Act {
        Act { then: Then::Wait, ..Act::nothing() }
    }

    /// The same with one more header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Act {
        self.head += &format!("{name}: {value}\r\n");
        self
    }

    /// The same after a while.
    pub(crate) fn after(self, delay: Duration) -> Act {
        Act { delay, ..self }
    }

    /// The same without the last bytes of the body; the connection closes instead.
    pub(crate) fn cut(mut self, bytes: usize) -> Act {
        self.body.truncate(self.body.len() - bytes);
        Act { then: Then::Close, ..self }
    }

    /// Does it; whether the connection stays.
    async fn perform(&self, tcp: &mut Connection) -> io::Result<bool> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        if !self.head.is_empty() {
            tcp.write_all(&[self.head.as_bytes(), b"\r\n", &self.body].concat()).await?;
        }
        match self.then {
            Then::Stay => Ok(true),
            Then::Close => {
                tokio::time::sleep(BEFORE_CLOSING).await;
                Ok(false)
            }
            Then::Wait => {
                while tcp.read(&mut [0; 64]).await? > 0 {}
                Ok(false)
            }
        }
    }
}

/// A whole answer to a chat, cut at the limit of its request, so that it teaches nothing of the model's lengths.
pub(crate) fn completion(usage: bool) -> Value {
    let mut body = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "It is."}, "finish_reason": "length"}],
    });
    if usage {
        body["usage"] = json!({"prompt_tokens": 14, "completion_tokens": 8, "total_tokens": 22});
    }
    body
}

/// An error in OpenAI's shape.
pub(crate) fn error(kind: &str, message: &str) -> Value {
    json!({"error": {"message": message, "type": kind, "param": null, "code": null}})
}

fn chunk(piece: &str) -> String {
    format!("{:x}\r\n{piece}\r\n", piece.len())
}

/// What strangers say of their load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// They have no such page.
    Absent,
    /// What is under way, in vLLM's words. Something on it is always new, as where sequences grow.
    Vllm,
}

/// What is done with a request, given how many this stranger has had before.
type Script = Arc<dyn Fn(&Post, usize) -> Act + Send + Sync>;

/// Servers at the addresses of some instances.
pub(crate) struct Strangers {
    posts: Arc<Mutex<Vec<Post>>>,
    all: Vec<Stranger>,
}

struct Stranger {
    role: Arc<Role>,
    task: JoinHandle<()>,
}

struct Role {
    instance: InstanceId,
    page: Page,
    script: Script,
    /// Of all strangers.
    posts: Arc<Mutex<Vec<Post>>>,
    under_way: AtomicUsize,
    scrapes: AtomicUsize,
}

impl Strangers {
    /// Takes the places of these instances, and waits until the gateway knows what the newcomers say of themselves.
    pub(crate) async fn in_place_of(
        gateway: &Gateway,
        instances: &[InstanceId],
        page: Page,
        script: impl Fn(&Post, usize) -> Act + Send + Sync + 'static,
    ) -> Strangers {
        let script: Script = Arc::new(script);
        let posts = Arc::new(Mutex::new(Vec::new()));
        let mut all = Vec::new();
        for instance in instances {
            gateway.fault(*instance, Fault::Refuse).await;
            let listener = listen(gateway.network(), gateway.instance(*instance).address()).await;
            let role = Arc::new(Role {
                instance: *instance,
                page,
                script: Arc::clone(&script),
                posts: Arc::clone(&posts),
                under_way: AtomicUsize::new(0),
                scrapes: AtomicUsize::new(0),
            });
            all.push(Stranger { task: tokio::spawn(accept(listener, Arc::clone(&role))), role });
        }
        let strangers = Strangers { posts, all };
        let least =
            async || strangers.all.iter().map(|s| s.role.scrapes.load(Ordering::Relaxed)).min().unwrap_or(SCRAPES);
        eventually("questions for the strangers' metrics", least, |scrapes| *scrapes >= SCRAPES).await;
        strangers
    }

    /// The same with one answer to everything.
    pub(crate) async fn saying(gateway: &Gateway, instances: &[InstanceId], page: Page, answer: Act) -> Strangers {
        Strangers::in_place_of(gateway, instances, page, move |_, _| answer.clone()).await
    }

    /// What they have got so far, in its order.
    pub(crate) fn posts(&self) -> Vec<Post> {
        lock(&self.posts).clone()
    }

    /// How much they have got so far.
    pub(crate) fn count(&self) -> usize {
        lock(&self.posts).len()
    }

    /// Gives the places back.
    pub(crate) async fn leave(mut self, gateway: &Gateway) {
        for stranger in &mut self.all {
            stranger.task.abort();
            // The port closes when the task is gone.
            let _ = (&mut stranger.task).await;
            gateway.fault(stranger.role.instance, Fault::None).await;
        }
        // Meanwhile Envoy learns that its connections are gone.
        tokio::time::sleep(BEFORE_CLOSING).await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Role {
    fn act(&self, post: Post) -> Act {
        let mut posts = lock(&self.posts);
        let before = posts.iter().filter(|other| other.instance == self.instance).count();
        let act = (self.script)(&post, before);
        posts.push(post);
        act
    }

    /// The answer to a GET.
    fn tell(&self, path: &str) -> Act {
        if path == "/health" {
            return Act::empty();
        }
        if path != "/metrics" {
            return Act::json(404, &json!({"detail": "Not Found"}));
        }
        let scrapes = self.scrapes.fetch_add(1, Ordering::Relaxed);
        match self.page {
            Page::Absent => Act::json(404, &json!({"detail": "Not Found"})),
            Page::Vllm => {
                let (running, kv) = (self.under_way.load(Ordering::Relaxed), (scrapes % 100) as f64 / 1e3);
                let page = format!(
                    "vllm:num_requests_running{{engine=\"0\"}} {running}\nvllm:num_requests_waiting{{engine=\"0\"}} 0\nvllm:kv_cache_usage_perc{{engine=\"0\"}} {kv}\n"
                );
                Act::whole(200, "text/plain; version=1.0.0; charset=utf-8", page.into_bytes())
            }
        }
    }
}

/// Takes the port of an instance that is gone.
async fn listen(network: &Network, address: SocketAddr) -> Listener {
    let bind = async || network.listen(address).await;
    eventually("the port of an instance that is gone", bind, Result::is_ok).await.expect("a listener")
}

/// Serves connections until it is aborted, which closes them.
async fn accept(mut listener: Listener, role: Arc<Role>) {
    let mut connections = JoinSet::new();
    while let Ok(tcp) = listener.accept().await {
        // Those that are over are taken away.
        while connections.try_join_next().is_some() {}
        let role = Arc::clone(&role);
        connections.spawn(async move {
            // The gateway may give a connection up at any time.
            let _ = converse(tcp, &role).await;
        });
    }
}

async fn converse(mut tcp: Connection, role: &Role) -> io::Result<()> {
    while let Some((method, path, body)) = receive(&mut tcp).await? {
        let stays = if method == "POST" {
            let act = role.act(Post { instance: role.instance, path, body });
            role.under_way.fetch_add(1, Ordering::Relaxed);
            let done = act.perform(&mut tcp).await;
            role.under_way.fetch_sub(1, Ordering::Relaxed);
            done?
        } else {
            role.tell(&path).perform(&mut tcp).await?
        };
        if !stays {
            break;
        }
    }
    Ok(())
}

/// Method, path and body of the next request; `None` where the connection ends before it.
async fn receive(tcp: &mut Connection) -> io::Result<Option<(String, String, Vec<u8>)>> {
    let mut seen = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        if let Some(request) = parse(&seen) {
            return Ok(Some(request));
        }
        match tcp.read(&mut buffer).await? {
            0 => return Ok(None),
            read => seen.extend_from_slice(&buffer[..read]),
        }
    }
}

/// A request, if all of it is there. Envoy sends the next one only after the answer.
fn parse(seen: &[u8]) -> Option<(String, String, Vec<u8>)> {
    let head_end = seen.windows(4).position(|four| four == b"\r\n\r\n")?;
    let (line, headers) = http::parse_head(std::str::from_utf8(&seen[..head_end]).expect("a head in UTF-8"));
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let rest = &seen[head_end + 4..];
    let value = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let body = if value("transfer-encoding") == Some("chunked") {
        let (chunks, is_complete) = http::parse_chunks(rest);
        is_complete.then(|| chunks.concat())?
    } else {
        let length = value("content-length").map_or(0, |length| length.parse().expect("a length"));
        rest.get(..length)?.to_vec()
    };
    Some((method, path, body))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
