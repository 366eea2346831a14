"""Notices from clouds, whose metadata servers run here."""

import http.server
import queue
import threading

import pytest

from ddpm.runtime import notices

_GOOGLE = '/computeMetadata/v1/instance/'
_AWS = '/latest/meta-data/spot/instance-action'


class Server(http.server.BaseHTTPRequestHandler):
  """Answers GET with what `values` holds; asks for the clouds' headers."""

  def do_PUT(self):
    assert 'X-aws-ec2-metadata-token-ttl-seconds' in self.headers
    self.answer(200, 'a token')

  def do_GET(self):
    google = self.headers['Metadata-Flavor'] == 'Google'
    aws = self.headers['X-aws-ec2-metadata-token'] == 'a token'
    if not (google if self.path.startswith(_GOOGLE) else aws):
      self.answer(403, '')
    elif (value := self.server.values.get(self.path)) is None:
      self.answer(404, '')
    elif value == 'hiccup':
      self.answer(503, '')
    else:
      self.answer(200, value)
    self.server.asked.put(self.path)

  def answer(self, code, text):
    self.send_response(code)
    self.end_headers()
    self.wfile.write(text.encode())

  def log_message(self, *args):
    pass


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setattr(notices, '_PAUSE', 0.02)
  for name in ('GCE_METADATA_HOST', 'AWS_EC2_METADATA_SERVICE_ENDPOINT'):
    monkeypatch.delenv(name, raising=False)
  # A proxy would not know of the addresses.
  monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
  made = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
  made.values, made.asked = {}, queue.Queue()
  made.address = f'127.0.0.1:{made.server_port}'
  threading.Thread(target=made.serve_forever, daemon=True).start()
  yield made
  made.shutdown()


def watch(server):
  """What was noticed, once the watcher knows how things were at its start."""
  noticed = queue.Queue()
  notices.watch(noticed.put)
  for _ in range(6):
    server.asked.get(timeout=10)
  return noticed


@pytest.mark.parametrize(
    'name, value, expected',
    [
        ('preempted', 'TRUE', 'preemption by Google Cloud'),
        ('maintenance-event', 'TERMINATE_ON_HOST_MAINTENANCE',
         'maintenance by Google Cloud'),
        ('maintenance-event', 'MIGRATE_ON_HOST_MAINTENANCE', None),
    ],
)  # fmt: skip
def test_google(server, monkeypatch, name, value, expected):
  monkeypatch.setenv('GCE_METADATA_HOST', server.address)
  server.values |= {
      f'{_GOOGLE}preempted': 'FALSE', f'{_GOOGLE}maintenance-event': 'NONE'
  }  # fmt: skip
  noticed = watch(server)
  assert noticed.empty()
  server.values[_GOOGLE + name] = 'hiccup'
  server.asked.get(timeout=10)
  server.values[_GOOGLE + name] = value
  if expected:
    assert noticed.get(timeout=10) == expected
  else:
    while not server.asked.empty():
      server.asked.get()
    for _ in range(6):
      server.asked.get(timeout=10)
    assert noticed.empty()


def test_aws(server, monkeypatch):
  monkeypatch.setenv(
      'AWS_EC2_METADATA_SERVICE_ENDPOINT', f'http://{server.address}/'
  )
  noticed = watch(server)
  assert noticed.empty()
  server.values[_AWS] = '{"action": "terminate", "time": "2026-01-01T00:00Z"}'
  assert noticed.get(timeout=10) == 'a spot interruption by AWS'


def test_a_notice_from_before_the_start_does_not_count(server, monkeypatch):
  monkeypatch.setenv('GCE_METADATA_HOST', server.address)
  server.values |= {
      f'{_GOOGLE}preempted': 'FALSE',
      f'{_GOOGLE}maintenance-event': 'TERMINATE_ON_HOST_MAINTENANCE',
  }
  noticed = watch(server)
  assert noticed.empty()
  server.values[f'{_GOOGLE}preempted'] = 'TRUE'
  assert noticed.get(timeout=10) == 'preemption by Google Cloud'


def test_elsewhere_nobody_asks(server):
  before = threading.active_count()
  notices.watch(pytest.fail)
  assert threading.active_count() == before
