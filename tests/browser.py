"""Headless Chromium for the tests of the HTML pages that tools write: it clicks, reads, takes screenshots, and watches
what a page loads and what it complains of."""

import json
import shutil
from base64 import b64decode
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

FLAGS = (
    *('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync'),
    *('--disable-background-networking', '--disable-component-update', '--disable-dev-shm-usage'),
    *('--hide-scrollbars', '--force-device-scale-factor=1', '--font-render-hinting=none'),
)
CHROMIUM, CHROMEDRIVER = shutil.which('chromium'), shutil.which('chromedriver')


class Browser:
    """One Chromium with a new profile in ``folder``.

    Attributes:
        driver: selenium's, for ``find_element``, ``execute_script`` and so on.
    """

    def __init__(self, folder: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f'--user-data-dir={folder}'):
            options.add_argument(flag)
        options.set_capability('goog:loggingPrefs', dict(browser='ALL', performance='ALL'))
        self.driver = webdriver.Chrome(options, Service(CHROMEDRIVER))

    def save_to(self, folder: Path) -> None:
        """Where files land that a page saves from now on."""
        self.driver.execute_cdp_cmd('Browser.setDownloadBehavior', dict(behavior='allow', downloadPath=str(folder)))

    def open(self, page: Path, width: int = 1280, height: int = 900) -> webdriver.Chrome:
        """Open a file from disk in a window of so many pixels."""
        self.driver.execute_cdp_cmd(
            'Emulation.setDeviceMetricsOverride', dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        )
        self.driver.get(page.resolve().as_uri())
        self._wait_for_two_frames()
        return self.driver

    def reload(self) -> None:
        self.driver.refresh()
        self._wait_for_two_frames()

    def _wait_for_two_frames(self) -> None:
        """A page may leave to them what needs storage."""
        self.driver.execute_async_script('requestAnimationFrame(() => requestAnimationFrame(arguments[0]))')

    def complaints(self) -> list[str]:
        """Since the last call: what the pages asked another machine for, and their console's errors and warnings."""
        found = [f'console: {entry["message"]}' for entry in self.driver.get_log('browser')]
        for entry in self.driver.get_log('performance'):
            message = json.loads(entry['message'])['message']
            if message['method'] == 'Network.requestWillBeSent':
                url = message['params']['request']['url']
                if not url.startswith(('file:', 'data:', 'blob:', 'about:', 'chrome:')):
                    found.append(f'request: {url}')
        return found

    def screenshot(self, file: Path) -> None:
        """The whole page as PNG, what lies below the window too."""
        shot = self.driver.execute_cdp_cmd('Page.captureScreenshot', dict(captureBeyondViewport=True))
        file.write_bytes(b64decode(shot['data']))
