"""The history in one DynamoDB table, which any number of servers share.

Every item is found by its key, so nothing is ever scanned and there is no
index to pay for or to wait for: each list tells of what was written before it.

    what            pk                  sk                         holds
    message         S#<session id>      <time, in ISO 8601>#<id>   everything
    user's pointer  U#<user id>         the message's              where the message is
    request         R#<request key>     R                          where the message is
    server          V#<server's id>     V                          until when it is alive
    secret          C#<name>            C                          random bytes

A message and what points to it are written in one transaction. docs/storage.md
says what each operation costs.
"""
