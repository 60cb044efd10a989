from pydantic import BaseModel, ConfigDict, Field

from app.web.fields import KeyId, Name, Timestamp


class KeyRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Name


class Key(BaseModel):
    id: KeyId
    name: str
    prefix: str = Field(description="the first characters, to tell keys apart")
    created_at: Timestamp
    last_used_at: Timestamp | None = Field(None, description="to the minute")
    revoked_at: Timestamp | None = None


class NewKey(Key):
    key: str = Field(description="shown this once; only its HMAC is stored")
