"""The admin page's HTML: Japanese first, English second, no script, every value escaped (X-34, CVE-2022-39220 class).

Pure text: values in, one page out. Device names and reasons come from outside and pass `html.escape` here, nowhere else.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from html import escape
from typing import Final

from hgwd.core.pairing import Attempt
from hgwd.core.status import DeviceStatus, GatewayStatus
from wire.units import format_bytes

_JST: Final = dt.timezone(dt.timedelta(hours=9), "JST")
_STYLE: Final = """
:root{color-scheme:light dark}body{font-family:system-ui,sans-serif;line-height:1.6;max-width:60rem;margin:0 auto;
padding:1rem}h1{font-size:1.4rem}h2{font-size:1.15rem;margin-top:2rem}.en{opacity:.75;font-size:.9em}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.4rem .6rem;border-bottom:1px solid #8886;
vertical-align:top}button{font:inherit;padding:.5rem 1rem;min-height:2.75rem}input{font:inherit;padding:.5rem}
.digits{font-size:2.5rem;letter-spacing:.2em;font-variant-numeric:tabular-nums;margin:.5rem 0}
.box{border:2px solid;border-radius:.5rem;padding:1rem;margin:1rem 0}.critical{border-color:#c00}
.warning{border-color:#b60}.info{border-color:#06c}.row{display:flex;gap:1rem;flex-wrap:wrap}
""".replace("\n", "")
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

_POLICY: Final = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

HEADERS: Final = (
    ("content-type", "text/html; charset=utf-8"),
    ("content-security-policy", _POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "same-origin"),
    ("cache-control", "no-store"),
)

_LINE_STATES: Final = {
    "unknown": ("まだ確認していません", "not asked yet"),
    "up": ("認証されています", "authenticated"),
    "down": ("接続できません", "not reachable"),
    "refused": ("認証されていません", "refused"),
}


def both(ja: str, en: str) -> str:
    """Return a text in both languages; the arguments are escaped here."""
    return f'{escape(ja)} <span class="en" lang="en">{escape(en)}</span>'


def page(title_ja: str, title_en: str, body: str) -> bytes:
    """Return a whole page around `body`, which is HTML already."""
    return (
        f'<!doctype html><html lang="ja"><head><meta charset="utf-8"><title>{escape(title_ja)} – hgwd</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><main><h1>{both(title_ja, title_en)}</h1>{body}</main></body></html>"
    ).encode()


def login_page(*, wrong: bool = False, wait_s: float = 0.0) -> bytes:
    """Return the log-in form, with the reason it is shown again."""
    note = ""
    if wait_s > 0:
        minutes = int(wait_s // 60) + 1
        note = _note("warning", f"あと{minutes}分お待ちください", f"too many tries: wait {minutes} minutes")
    elif wrong:
        note = _note("warning", "パスワードが違います", "wrong password")
    label = both("管理パスワード", "admin password")
    return page(
        "ホームゲートウェイ",
        "home gateway",
        f'{note}<form method="post" action="/login"><p><label>{label}<br>'
        '<input type="password" name="password" autocomplete="current-password" required autofocus></label></p>'
        f"<p><button>{both('ログイン', 'log in')}</button></p></form>",
    )


def message_page(ja: str, en: str, *, severity: str = "info") -> bytes:
    """Return a page with one message and a way back."""
    return page("ホームゲートウェイ", "home gateway", _note(severity, ja, en) + _back())


def status_page(status: GatewayStatus, waiting: Attempt | None, csrf: str) -> bytes:
    """Return the main page."""
    return page(
        "ホームゲートウェイ",
        "home gateway",
        "".join(
            (
                *(_note(found.severity, found.ja, found.en) for found in status.conditions),
                _pairing(waiting, csrf),
                _line(status),
                _queue(status),
                _devices(status.devices),
                _software(status.update),
                _identity(status),
                _form("/logout", csrf, {}, "ログアウト", "log out"),
            )
        ),
    )


def revoke_page(device: DeviceStatus, csrf: str) -> bytes:
    """Ask whether a device is really to be cut off."""
    note = _note(
        "warning",
        "このNASは、今すぐバックアップできなくなります。すでに預かったデータは送られます。",
        "This NAS can no longer back up, from now on. What was taken already is still sent.",
    )
    form = _form("/devices/revoke", csrf, {"device": device.device}, "接続を解除する", "revoke")
    return page("NASの接続を解除", "revoke a NAS", f"<p>{escape(device.name)}</p>{note}{form}{_back()}")


def _pairing(waiting: Attempt | None, csrf: str) -> str:
    if waiting is None or waiting.digits is None:
        return ""
    fields = {"pair": waiting.pair, "digits": waiting.digits}
    question = both(
        "NASの画面にも同じ6桁の番号が表示されていますか？違うときは必ず「拒否」を押してください。",
        "Does the NAS show the same 6 digits? If not, press “refuse”.",
    )
    return (
        f'<section class="box info"><h2>{both("NASの接続", "pair a NAS")}: {escape(waiting.name)}</h2>'
        f'<p class="digits">{waiting.digits[:3]} {waiting.digits[3:]}</p><p>{question}</p><div class="row">'
        + _form("/pair/approve", csrf, fields, "同じなので接続を許可", "same digits: approve")
        + _form("/pair/refuse", csrf, fields, "拒否", "refuse")
        + "</div></section>"
    )


def _line(status: GatewayStatus) -> str:
    state = both(*_LINE_STATES[status.line.state])
    reason = f" ({escape(status.line.reason)})" if status.line.reason else ""
    since = f" – {_time(status.line.since_s)}" if status.line.since_s else ""
    return f"<h2>{both('回線認証', 'line authentication')}</h2><p>{state}{reason}{since}</p>"


def _queue(status: GatewayStatus) -> str:
    queue = status.queue
    age = (
        f" – {both('最も古いもの', 'oldest')}: {_time_ago(queue.oldest_age_s)}" if queue.oldest_age_s else ""
    )
    return (
        f"<h2>{both('送信待ち', 'queue')}</h2><table>"
        + _row(
            "ここにだけあるデータ",
            "only here (spooled)",
            f"{escape(format_bytes(queue.spooled_bytes))} / {escape(format_bytes(queue.limit_bytes))}{age}",
        )
        + _row(
            "保管サービスに届いたデータ（起動後）",
            "stored since the start",
            escape(format_bytes(queue.forwarded_bytes)),
        )
        + _row("最後に届いた時刻", "last stored", _time(queue.last_stored_at_s))
        + _row("保管サービスが断ったデータ", "rejected", str(queue.rejected_packs))
        + "</table>"
    )


def _devices(devices: list[DeviceStatus]) -> str:
    head = "".join(
        f"<th>{both(ja, en)}</th>"
        for ja, en in (
            ("名前", "name"),
            ("最後に届いたデータ", "last stored"),
            ("最後に完了したバックアップ", "last backed up"),
            ("操作", "action"),
        )
    )
    rows = "".join(
        f"<tr><td>{escape(device.name)}</td><td>{_time(device.last_stored_at_s)}</td>"
        f"<td>{_time(device.last_durable_at_s)}</td><td>{_revoke_link(device)}</td></tr>"
        for device in devices
    )
    empty = "" if devices else f"<p>{both('接続されたNASはありません', 'no NAS is paired')}</p>"
    return f"<h2>NAS</h2><table><tr>{head}</tr>{rows}</table>{empty}"


def _revoke_link(device: DeviceStatus) -> str:
    if device.revoked_at_s is not None:
        return both("解除済み", "revoked")
    return f'<a href="/devices/{escape(device.device)}/revoke">{both("解除", "revoke")}</a>'


def _software(update: dict[str, object]) -> str:
    listed = update.get("software")
    items = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    title = f"<h2>{both('ソフトウェア', 'software')}</h2>"
    if not items:
        return f"{title}<p>{both('配信されたソフトウェアはありません', 'no software is delivered')}</p>"
    columns = {
        "software": ("名前", "name"),
        "version": ("版", "version"),
        "state": ("状態", "state"),
        "fault": ("故障コード", "fault"),
    }
    head = "".join(f"<th>{both(ja, en)}</th>" for ja, en in columns.values())
    rows = "".join(
        "<tr>" + "".join(f"<td>{_cell(item.get(key))}</td>" for key in columns) + "</tr>" for item in items
    )
    return f"{title}<table><tr>{head}</tr>{rows}</table>"


def _cell(value: object) -> str:
    return "–" if value is None else escape(str(value))


def _identity(status: GatewayStatus) -> str:
    pin = status.certificate_sha256
    shown = " ".join(pin[place : place + 8] for place in range(0, len(pin), 8))
    return (
        f"<h2>{both('このゲートウェイ', 'this gateway')}</h2><table>"
        + _row("型番・製造番号", "model, serial", f"{escape(status.model)} {escape(status.serial)}")
        + _row("証明書 (SHA-256)", "certificate", f"<code>{escape(shown)}</code>")
        + "</table>"
    )


def _row(ja: str, en: str, value_html: str) -> str:
    return f'<tr><th scope="row">{both(ja, en)}</th><td>{value_html}</td></tr>'


def _form(action: str, csrf: str, fields: dict[str, str], ja: str, en: str) -> str:
    hidden = "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'
        for name, value in {"csrf": csrf, **fields}.items()
    )
    return f'<form method="post" action="{action}">{hidden}<button>{both(ja, en)}</button></form>'


def _note(severity: str, ja: str, en: str) -> str:
    return f'<p class="box {escape(severity)}" role="status">{both(ja, en)}</p>'


def _back() -> str:
    return f'<p><a href="/">{both("戻る", "back")}</a></p>'


def _time(unix_s: float | None) -> str:
    if unix_s is None:
        return "–"
    return escape(dt.datetime.fromtimestamp(unix_s, _JST).strftime("%Y-%m-%d %H:%M:%S JST"))


def _time_ago(age_s: float) -> str:
    minutes = int(age_s // 60)
    return both(f"{minutes}分前", f"{minutes} min ago") if minutes else both("1分以内", "within a minute")
