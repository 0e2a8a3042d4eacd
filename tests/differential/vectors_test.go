package differential

import "strings"

// vector is one connection's bytes, and the requests that the application must
// see of them, as "METHOD target"; none for what must be refused whole.
type vector struct {
	name string
	raw  string
	sees []string
	// stricter names back ends that refuse by themselves what is admitted.
	stricter []string
	// breaks says that the only request ends before its body: a back end may have
	// seen it, or not.
	breaks bool
}

const (
	smuggled = "GET /secret HTTP/1.1\r\nHost: x\r\n\r\n"
	chunked  = "Transfer-Encoding: chunked\r\n"
	end      = "0\r\n\r\n"
)

// post is a request to /ok with the given field lines, then what follows.
func post(fields, rest string) string {
	return "POST /ok HTTP/1.1\r\nHost: x\r\n" + fields + "\r\n" + rest
}

func get(target, fields string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: x\r\n" + fields + "\r\n"
}

func one(request string) []string { return []string{request} }

// framing is about where a request ends.
var framing = []vector{
	{name: "length", raw: post("Content-Length: 3\r\n", "abc"), sees: one("POST /ok")},
	{name: "length of zero", raw: post("Content-Length: 0\r\n", ""), sees: one("POST /ok")},
	{name: "leading zeros in the length", raw: post("Content-Length: 0003\r\n", "abc"), sees: one("POST /ok")},
	{name: "no length at all", raw: post("", ""), sees: one("POST /ok")},
	{name: "smuggled in a body by length", raw: post("Content-Length: 33\r\n", smuggled), sees: one("POST /ok")},
	{name: "smuggled in a body by chunks", raw: post(chunked, "21\r\n"+smuggled+"\r\n"+end), sees: one("POST /ok"), stricter: []string{"plain"}},
	{name: "body of a GET", raw: get("/ok", "Content-Length: 33\r\n") + smuggled, sees: one("GET /ok")},
	{name: "body of a GET in chunks", raw: get("/ok", chunked) + "21\r\n" + smuggled + "\r\n" + end, sees: one("GET /ok"), stricter: []string{"plain"}},
	{name: "body of a HEAD", raw: "HEAD /ok HTTP/1.1\r\nHost: x\r\nContent-Length: 33\r\n\r\n" + smuggled, sees: one("HEAD /ok")},
	{name: "CL.TE", raw: post("Content-Length: 38\r\n"+chunked, end+smuggled)},
	{name: "TE.CL", raw: post(chunked+"Content-Length: 4\r\n", "21\r\n"+smuggled+"\r\n"+end)},
	{name: "TE and a length of zero", raw: post(chunked+"Content-Length: 0\r\n", end)},
	{name: "TE.TE same", raw: post(chunked+chunked, end+smuggled)},
	{name: "TE.TE identity", raw: post(chunked+"Transfer-Encoding: identity\r\n", end)},
	{name: "TE identity", raw: post("Transfer-Encoding: identity\r\nContent-Length: 3\r\n", "abc")},
	{name: "TE twice in one field", raw: post("Transfer-Encoding: chunked, chunked\r\n", end)},
	{name: "TE gzip and chunked", raw: post("Transfer-Encoding: gzip, chunked\r\n", end)},
	{name: "TE chunked and gzip", raw: post("Transfer-Encoding: chunked, gzip\r\n", end)},
	{name: "TE with an empty element", raw: post("Transfer-Encoding: , chunked\r\n", end)},
	{name: "TE empty", raw: post("Transfer-Encoding:\r\n", "")},
	{name: "TE quoted", raw: post("Transfer-Encoding: \"chunked\"\r\n", end)},
	{name: "TE with a parameter", raw: post("Transfer-Encoding: chunked;q=1\r\n", end)},
	{name: "TE xchunked", raw: post("Transfer-Encoding: xchunked\r\nContent-Length: 3\r\n", "abc")},
	{name: "TE with a vertical tab", raw: post("Transfer-Encoding: \vchunked\r\n", end)},
	{name: "TE with a trailing NUL", raw: post("Transfer-Encoding: chunked\x00\r\n", end)},
	{name: "TE after a tab", raw: post("Transfer-Encoding:\tchunked\r\n", end), sees: one("POST /ok"), stricter: []string{"plain"}},
	{name: "TE in capitals", raw: post("TRANSFER-ENCODING: CHUNKED\r\n", end), sees: one("POST /ok"), stricter: []string{"plain"}},
	{name: "TE with spaces behind", raw: post("Transfer-Encoding: chunked   \r\n", end), sees: one("POST /ok"), stricter: []string{"plain"}},
	{name: "TE with a space before the colon", raw: post("Transfer-Encoding : chunked\r\n", end)},
	{name: "TE with a tab before the colon", raw: post("Transfer-Encoding\t: chunked\r\n", end)},
	{name: "TE with a space before the name", raw: post(" Transfer-Encoding: chunked\r\n", end)},
	{name: "TE behind a bare line feed", raw: post("A: b\nTransfer-Encoding: chunked\r\n", end)},
	{name: "TE behind a bare carriage return", raw: post("A: b\rTransfer-Encoding: chunked\r\n", end)},
	{name: "TE in a folded line", raw: post("A: b\r\n Transfer-Encoding: chunked\r\n", end)},
	{name: "TE folded", raw: post("Transfer-Encoding:\r\n chunked\r\n", end)},
	{name: "TE with a long s", raw: post("Tran\u017ffer-Encoding: chunked\r\nContent-Length: 3\r\n", "abc")},
	{name: "TE with an underscore beside a length", raw: post("Transfer_Encoding: chunked\r\nContent-Length: 38\r\n", end+smuggled), sees: one("POST /ok")},
	{name: "CL with an underscore beside chunks", raw: post(chunked+"Content_Length: 5\r\n", end), sees: one("POST /ok"), stricter: []string{"plain"}},
	{name: "TE in HTTP/1.0", raw: "POST /ok HTTP/1.0\r\nHost: x\r\n" + chunked + "\r\n" + end},
	{name: "CL twice the same", raw: post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc")},
	{name: "CL twice different", raw: post("Content-Length: 0\r\nContent-Length: 33\r\n", smuggled)},
	{name: "CL list", raw: post("Content-Length: 3, 3\r\n", "abc")},
	{name: "CL with a plus", raw: post("Content-Length: +3\r\n", "abc")},
	{name: "CL with a minus", raw: post("Content-Length: -3\r\n", "abc")},
	{name: "CL in hexadecimal", raw: post("Content-Length: 0x3\r\n", "abc")},
	{name: "CL with an underscore in the number", raw: post("Content-Length: 1_0\r\n", "abcdefghij")},
	{name: "CL with a point", raw: post("Content-Length: 3.0\r\n", "abc")},
	{name: "CL with a space inside", raw: post("Content-Length: 3 6\r\n", smuggled)},
	{name: "CL empty", raw: post("Content-Length:\r\n", "")},
	{name: "CL of two to the 64th", raw: post("Content-Length: 18446744073709551616\r\n", "")},
	{name: "CL of two to the 64th and three", raw: post("Content-Length: 18446744073709551619\r\n", "abc")},
	{name: "CL of other digits", raw: post("Content-Length: \u0663\r\n", "abc")},
	{name: "CL with a space before the colon", raw: post("Content-Length : 36\r\n", smuggled)},
	{name: "CL with a space before the name", raw: post(" Content-Length: 33\r\n", smuggled)},
	{name: "CL behind a form feed", raw: post("Content-Length: \f3\r\n", "abc")},
	{name: "chunk of every case", raw: post(chunked, "A\r\n0123456789\r\na\r\n0123456789\r\n00000\r\n\r\n"), sees: one("POST /ok"), stricter: []string{"plain"}},
	{name: "chunk extension", raw: post(chunked, "3;a=b\r\nabc\r\n0;c\r\n\r\n"), sees: one("POST /ok"), stricter: []string{"plain"}},
	{name: "chunk extension quoted", raw: post(chunked, "3;a=\"b;c\"\r\nabc\r\n"+end), sees: one("POST /ok"), stricter: []string{"plain"}},
	{name: "chunk extension with a line feed", raw: post(chunked, "3;a\nabc\r\n"+end)},
	{name: "chunk extension with a bare carriage return", raw: post(chunked, "3;a\rb\r\nabc\r\n"+end)},
	{name: "chunk extension oversized", raw: post(chunked, "3;"+strings.Repeat("a", 300)+"\r\nabc\r\n"+end)},
	{name: "chunk extensions without end", raw: post(chunked, strings.Repeat("1;"+strings.Repeat("e", 200)+"\r\na\r\n", 40)+end)},
	{name: "chunk size with a space behind", raw: post(chunked, "3 \r\nabc\r\n"+end)},
	{name: "chunk size with a space before", raw: post(chunked, " 3\r\nabc\r\n"+end)},
	{name: "chunk size with a plus", raw: post(chunked, "+3\r\nabc\r\n"+end)},
	{name: "chunk size with 0x", raw: post(chunked, "0x3\r\nabc\r\n"+end)},
	{name: "chunk size with an underscore", raw: post(chunked, "0_3\r\nabc\r\n"+end)},
	{name: "chunk size empty", raw: post(chunked, "\r\nabc\r\n"+end)},
	{name: "chunk size of two to the 64th and three", raw: post(chunked, "10000000000000003\r\nabc\r\n"+end)},
	{name: "chunk size of minus one", raw: post(chunked, "ffffffffffffffff\r\nabc\r\n"+end)},
	{name: "chunk size of two to the 32nd", raw: post(chunked, "100000003\r\nabc\r\n"+end)},
	{name: "chunk size of many zeros", raw: post(chunked, strings.Repeat("0", 40)+"3\r\nabc\r\n"+end)},
	{name: "chunk longer than its size", raw: post(chunked, "3\r\nabcd\r\n"+end)},
	{name: "chunk without its end", raw: post(chunked, "3\r\nabc0\r\n\r\n")},
	{name: "chunk that ends with a line feed", raw: post(chunked, "3\r\nabc\n"+end)},
	{name: "chunk that ends with another byte and a line feed", raw: post(chunked, "3\r\nabcX\n"+end)},
	{name: "chunk line that ends with a line feed", raw: post(chunked, "3\nabc\r\n"+end)},
	{name: "last chunk ends with line feeds", raw: post(chunked, "0\n\n")},
	{name: "last chunk without its empty line", raw: post(chunked, "0\r\n"), breaks: true},
	{name: "chunks that stop", raw: post(chunked, "5\r\nab"), breaks: true},
	{name: "length that is not filled", raw: post("Content-Length: 9\r\n", "ab"), breaks: true},
	{name: "trailer", raw: post(chunked+"Trailer: x-sum\r\n", "0\r\nX-Sum: 1\r\n\r\n"), sees: one("POST /ok"), stricter: []string{"plain"}},
	{name: "trailers that frame", raw: post(chunked, "0\r\nContent-Length: 33\r\nTransfer-Encoding: chunked\r\nHost: y\r\n\r\n"), sees: one("POST /ok"), stricter: []string{"plain"}},
	{name: "trailer with a space before the colon", raw: post(chunked, "0\r\nX-Sum : 1\r\n\r\n")},
	{name: "trailer folded", raw: post(chunked, "0\r\nX-Sum: 1\r\n 2\r\n\r\n")},
	{name: "trailer with a bare line feed", raw: post(chunked, "0\r\nX: 1\nY: 2\r\n\r\n")},
	{name: "trailer without a colon", raw: post(chunked, "0\r\n"+smuggled)},
	{name: "trailers oversized", raw: post(chunked, "0\r\nX: "+strings.Repeat("a", 70<<10)+"\r\n\r\n")},
	{name: "trailers too many", raw: post(chunked, "0\r\n"+strings.Repeat("X: a\r\n", 200)+"\r\n")},
}

// lines is about the bytes that heads are made of.
var lines = []vector{
	{name: "line feeds alone", raw: "GET /ok HTTP/1.1\nHost: x\n\n"},
	{name: "line feed after the request line", raw: "GET /ok HTTP/1.1\nHost: x\r\n\r\n"},
	{name: "line feed as the empty line", raw: "GET /ok HTTP/1.1\r\nHost: x\r\n\n"},
	{name: "carriage returns alone", raw: "GET /ok HTTP/1.1\rHost: x\r\r"},
	{name: "carriage return twice", raw: "GET /ok HTTP/1.1\r\r\nHost: x\r\n\r\n"},
	{name: "carriage return in a value", raw: get("/ok", "A: b\rc\r\n")},
	{name: "NUL in a value", raw: get("/ok", "A: b\x00c\r\n")},
	{name: "NUL in a name", raw: get("/ok", "A\x00: b\r\n")},
	{name: "NUL in the method", raw: "GE\x00T /ok HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "NUL in the target", raw: "GET /ok\x00/secret HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "delete in a value", raw: get("/ok", "A: b\x7fc\r\n")},
	{name: "escape in a value", raw: get("/ok", "A: \x1b[31m\r\n")},
	{name: "bytes above 7F in a value", raw: get("/ok", "A: caf\xc3\xa9\r\n"), sees: one("GET /ok")},
	{name: "bytes above 7F in a name", raw: get("/ok", "Caf\xc3\xa9: a\r\n")},
	{name: "fold with a space", raw: get("/ok", "A: b\r\n c\r\n")},
	{name: "fold with a tab", raw: get("/ok", "A: b\r\n\tc\r\n")},
	{name: "fold after the request line", raw: "GET /ok HTTP/1.1\r\n Host: y\r\nHost: x\r\n\r\n"},
	{name: "field without a colon", raw: get("/ok", "Nothing\r\n")},
	{name: "field without a name", raw: get("/ok", ": a\r\n")},
	{name: "field name with a space", raw: get("/ok", "Host x: y\r\n")},
	{name: "field name in brackets", raw: get("/ok", "[A]: b\r\n")},
	{name: "field with an empty value", raw: get("/ok", "A:\r\n"), sees: one("GET /ok")},
	{name: "space before the colon", raw: get("/ok", "A : b\r\n")},
	{name: "space before the colon of Host", raw: "GET /ok HTTP/1.1\r\nHost : x\r\n\r\n"},
	{name: "empty line first", raw: "\r\n" + get("/ok", "")},
	{name: "space first", raw: " " + get("/ok", "")},
	{name: "two spaces after the method", raw: "GET  /ok HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "tab after the method", raw: "GET\t/ok HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "space in the target", raw: "GET /ok /secret HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "space after the version", raw: "GET /ok HTTP/1.1 \r\nHost: x\r\n\r\n"},
	{name: "two versions", raw: "GET /secret HTTP/1.1 HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "no version: HTTP/0.9", raw: "GET /ok\r\n"},
	{name: "no version, then an empty line", raw: "GET /ok\r\n\r\n"},
	{name: "version 0.9", raw: "GET /ok HTTP/0.9\r\n\r\n"},
	{name: "version 1.2", raw: "GET /ok HTTP/1.2\r\nHost: x\r\n\r\n"},
	{name: "version 2.0", raw: "GET /ok HTTP/2.0\r\nHost: x\r\n\r\n"},
	{name: "version 01.1", raw: "GET /ok HTTP/01.1\r\nHost: x\r\n\r\n"},
	{name: "version in lower case", raw: "GET /ok http/1.1\r\nHost: x\r\n\r\n"},
	{name: "version of another protocol", raw: "GET /ok ICAP/1.0\r\nHost: x\r\n\r\n"},
	{name: "preface of HTTP/2", raw: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
	{name: "method in lower case", raw: "get /ok HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "method with a brace", raw: "GET{} /ok HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "method that begins with an allowed one", raw: "GETX /ok HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "long target", raw: get("/ok/"+strings.Repeat("a", 1500), ""), sees: one("GET /ok/" + strings.Repeat("a", 1500))},
	{name: "head too long", raw: get("/ok", "A: "+strings.Repeat("a", 70<<10)+"\r\n")},
	{name: "target too long", raw: get("/ok/"+strings.Repeat("a", 70<<10), "")},
	{name: "fields too many", raw: get("/ok", strings.Repeat("A: b\r\n", 200))},
	{name: "many fields", raw: get("/ok", strings.Repeat("A: b\r\n", 80)), sees: one("GET /ok")},
	{name: "nothing", raw: ""},
	{name: "half a head", raw: "GET /ok HTTP/1.1\r\nHo"},
}

// targets is about which resource a request is for.
var targets = []vector{
	{name: "plain", raw: get("/ok/a", ""), sees: one("GET /ok/a")},
	{name: "query", raw: get("/ok?a=/../secret&b=%2f%00", ""), sees: one("GET /ok?a=/../secret&b=%2f%00")},
	{name: "dot segments", raw: get("/secret/../ok/./b", ""), sees: one("GET /ok/b")},
	{name: "dot segments to what is denied", raw: get("/ok/../secret", "")},
	{name: "dot segments encoded", raw: get("/ok/%2e%2e/secret", "")},
	{name: "dot segments half encoded", raw: get("/ok/.%2E/secret", "")},
	{name: "dot segments encoded twice", raw: get("/ok/%252e%252e/secret", ""), sees: one("GET /ok/%252e%252e/secret")},
	{name: "dot segments beyond the root", raw: get("/../../ok", ""), sees: one("GET /ok")},
	{name: "dot segment with parameters", raw: get("/ok/..;/secret", "")},
	{name: "dot segment with an encoded semicolon", raw: get("/ok/..%3b/secret", "")},
	{name: "dot segment with parameters, encoded", raw: get("/ok/%2e%2e;a=b/secret", "")},
	{name: "matrix parameters", raw: get("/ok;a=b/c", "")}, // "/ok;a=b" is not below "/ok"
	{name: "matrix parameters below", raw: get("/ok/a;b=c/d", ""), sees: one("GET /ok/a;b=c/d")},
	{name: "slashes", raw: get("//ok///a", ""), sees: one("GET /ok/a")},
	{name: "slashes to what is denied", raw: get("//secret", "")},
	{name: "another authority by slashes", raw: get("//y/secret", "")},
	{name: "encoded slash", raw: get("/ok%2f..%2fsecret", "")},
	{name: "encoded backslash", raw: get("/ok%5c..%5csecret", "")},
	{name: "backslash", raw: get("/ok\\..\\secret", "")},
	{name: "encoded NUL", raw: get("/ok%00/secret", "")},
	{name: "encoded line end", raw: get("/ok/a%0d%0ab", ""), sees: one("GET /ok/a%0D%0Ab")},
	{name: "encoded letters", raw: get("/%6fk/%61", ""), sees: one("GET /ok/a")},
	{name: "encoded letters of what is denied", raw: get("/s%65cret", "")},
	{name: "encoded in another case", raw: get("/ok/%c3%A9", ""), sees: one("GET /ok/%C3%A9")},
	{name: "percent alone", raw: get("/ok/%", "")},
	{name: "percent with one digit", raw: get("/ok/%2", "")},
	{name: "percent with no digits", raw: get("/ok/%zz", "")},
	{name: "percent u", raw: get("/ok/%u002e%u002e/secret", "")},
	{name: "encoded question mark", raw: get("/ok/a%3fb", ""), sees: one("GET /ok/a%3Fb")},
	{name: "encoded hash", raw: get("/ok/a%23b", ""), sees: one("GET /ok/a%23b")},
	{name: "fragment", raw: get("/ok#/../secret", "")},
	{name: "asterisk", raw: get("*", "")},
	{name: "no slash", raw: get("ok", "")},
	{name: "bytes above 7F in the target", raw: get("/ok/\xc3\xa9", "")},
	{name: "absolute form", raw: get("http://x/ok/a", ""), sees: one("GET /ok/a")},
	{name: "absolute form of another host", raw: get("http://y/ok", "")},
	{name: "absolute form to what is denied", raw: get("http://x/secret", "")},
	{name: "absolute form with an empty path", raw: get("http://x?/ok", "")},
	{name: "absolute form with dots", raw: get("http://x/ok/../secret", "")},
	{name: "absolute form with a user", raw: get("http://x@y/ok", "")},
	{name: "absolute form of https", raw: get("https://x/ok", "")},
	{name: "absolute form of a file", raw: get("file:///ok", "")},
	{name: "absolute form without a host", raw: get("http:///ok", "")},
	{name: "absolute form in capitals", raw: get("HTTP://X/ok/a", ""), sees: one("GET /ok/a")},
	{name: "authority form", raw: get("x:80", "")},
	{name: "no Host", raw: "GET /ok HTTP/1.1\r\n\r\n"},
	{name: "two Hosts", raw: get("/ok", "Host: y\r\n")},
	{name: "two Hosts alike", raw: get("/ok", "Host: x\r\n")},
	{name: "Host with a list", raw: "GET /ok HTTP/1.1\r\nHost: x, y\r\n\r\n"},
	{name: "Host with a path", raw: "GET /ok HTTP/1.1\r\nHost: x/secret\r\n\r\n"},
	{name: "Host with a user", raw: "GET /ok HTTP/1.1\r\nHost: a@x\r\n\r\n"},
	{name: "Host with a space", raw: "GET /ok HTTP/1.1\r\nHost: x y\r\n\r\n"},
	{name: "Host with a port of letters", raw: "GET /ok HTTP/1.1\r\nHost: x:http\r\n\r\n"},
	{name: "Host with a huge port", raw: "GET /ok HTTP/1.1\r\nHost: x:999999\r\n\r\n"},
	{name: "Host in capitals with a dot and a port", raw: "GET /ok HTTP/1.1\r\nHost: X.Bank.:8080\r\n\r\n", sees: one("GET /ok")},
	{name: "Host of IPv6", raw: "GET /ok HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", sees: one("GET /ok")},
	{name: "Host of broken IPv6", raw: "GET /ok HTTP/1.1\r\nHost: [::1\r\n\r\n"},
	{name: "Host named by Connection", raw: get("/ok", "Connection: host\r\n")},
	{name: "X-Forwarded-Host", raw: get("/ok", "X-Forwarded-Host: y\r\n"), sees: one("GET /ok")},
	{name: "Host with an underscore in its name", raw: get("/ok", "H_ost: y\r\n"), sees: one("GET /ok")},
	{name: "CONNECT is not allowed here", raw: "CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n" + smuggled},
	{name: "CONNECT with a body", raw: "CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\nContent-Length: 3\r\n\r\nabc"},
	{name: "TRACE is not allowed here", raw: "TRACE /ok HTTP/1.1\r\nHost: x\r\n\r\n"},
}

// connections is about several requests, or other protocols, on one connection.
var connections = []vector{
	{name: "pipelined", raw: get("/ok/1", "") + post("Content-Length: 1\r\n", "a") + get("/ok/2", ""),
		sees: []string{"GET /ok/1", "POST /ok", "GET /ok/2"}},
	{name: "pipelined behind a denied one", raw: get("/secret", "") + get("/ok/2", ""), sees: one("GET /ok/2")},
	{name: "pipelined behind a denied one with a body", raw: "POST /secret HTTP/1.1\r\nHost: x\r\nContent-Length: 33\r\n\r\n" + smuggled + get("/ok/2", ""), sees: one("GET /ok/2")},
	{name: "pipelined behind a refused one", raw: "GET /ok HTTP/1.1\r\nHost : x\r\n\r\n" + get("/ok/2", "")},
	{name: "pipelined behind a broken body", raw: post(chunked, "zz\r\n") + get("/ok/2", "")},
	{name: "pipelined behind Connection: close", raw: get("/ok/1", "Connection: close\r\n") + get("/ok/2", ""), sees: one("GET /ok/1")},
	{name: "pipelined behind HTTP/1.0", raw: "GET /ok/1 HTTP/1.0\r\nHost: x\r\n\r\n" + get("/ok/2", ""), sees: one("GET /ok/1")},
	{name: "HTTP/1.0 without Host", raw: "GET /ok/1 HTTP/1.0\r\n\r\n", sees: one("GET /ok/1")},
	{name: "HTTP/1.0 with keep-alive", raw: "GET /ok/1 HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n", sees: one("GET /ok/1")},
	{name: "an empty answer keeps the order", raw: get("/ok/1", "") + get("/ok/2", "") + "HEAD /ok/3 HTTP/1.1\r\nHost: x\r\n\r\n" + get("/ok/4", ""),
		sees: []string{"GET /ok/1", "GET /ok/2", "HEAD /ok/3", "GET /ok/4"}},
	{name: "Expect with the body at once", raw: post("Expect: 100-continue\r\nContent-Length: 3\r\n", "abc"), sees: one("POST /ok")},
	{name: "Expect without a body", raw: get("/ok", "Expect: 100-continue\r\n"), sees: one("GET /ok")},
	{name: "Expect, then another request", raw: post("Expect: 100-continue\r\nContent-Length: 3\r\n", "abc") + get("/ok/2", ""),
		sees: []string{"POST /ok", "GET /ok/2"}},
	{name: "Expect of something else", raw: post("Expect: 100-continue-please\r\nContent-Length: 3\r\n", "abc")},
	{name: "Expect twice", raw: post("Expect: 100-continue\r\nExpect: x\r\nContent-Length: 3\r\n", "abc")},
	{name: "Expect in HTTP/1.0", raw: "POST /ok HTTP/1.0\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc", sees: one("POST /ok")},
	{name: "upgrade to h2c", raw: get("/ok", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n") +
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", sees: one("GET /ok")},
	{name: "upgrade to h2c among others", raw: get("/ok", "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n"), sees: one("GET /ok")},
	{name: "upgrade to a draft of h2c", raw: get("/ok", "Connection: Upgrade\r\nUpgrade: h2c-14\r\n"), sees: one("GET /ok")},
	{name: "upgrade to HTTP/2.0", raw: get("/ok", "Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n"), sees: one("GET /ok")},
	{name: "upgrade in two lines", raw: get("/ok", "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n"), sees: one("GET /ok")},
	{name: "upgrade that Connection does not confirm", raw: get("/ok", "Upgrade: websocket\r\n"), sees: one("GET /ok")},
	{name: "upgrade with a body", raw: post("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 33\r\n", smuggled), sees: one("POST /ok")},
	{name: "upgrade of what is denied", raw: get("/secret", "Connection: Upgrade\r\nUpgrade: websocket\r\n")},
	{name: "Connection names the length", raw: post("Connection: content-length\r\nContent-Length: 33\r\n", smuggled)},
	{name: "Connection names the coding", raw: post("Connection: transfer-encoding\r\n"+chunked, end+smuggled)},
	{name: "Connection names a credential", raw: get("/ok", "Connection: authorization\r\nAuthorization: Basic eA==\r\n")},
	{name: "Connection names its own", raw: get("/ok", "Connection: x-own\r\nX-Own: a\r\n"), sees: one("GET /ok")},
	{name: "Proxy-Connection", raw: get("/ok/1", "Proxy-Connection: close\r\n") + get("/ok/2", ""), sees: []string{"GET /ok/1", "GET /ok/2"}},
	{name: "Keep-Alive", raw: get("/ok/1", "Keep-Alive: timeout=0\r\nConnection: keep-alive\r\n") + get("/ok/2", ""), sees: []string{"GET /ok/1", "GET /ok/2"}},
	{name: "TE of its own", raw: get("/ok", "TE: chunked, trailers\r\nConnection: TE\r\n"), sees: one("GET /ok")},
	{name: "ClientHello behind a request", raw: get("/ok", "") + "\x16\x03\x01\x00\x05hello", sees: one("GET /ok")},
	{name: "bytes of no protocol", raw: "\x00\x01\x02\x03\x04\x05\x06\x07\r\n\r\n"},
	{name: "a shell's probe", raw: "\x80\x2e\x01\x00\x02\r\n\r\n" + smuggled},
}

func corpus() []vector {
	var all []vector
	for group, list := range map[string][]vector{"framing": framing, "lines": lines, "targets": targets, "connections": connections} {
		for _, v := range list {
			v.name = group + ": " + v.name
			all = append(all, v)
		}
	}
	return all
}
