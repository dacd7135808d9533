"""The HTTP server: OpenAI's API, Kakao's KoGPT API, metrics, and a page."""
