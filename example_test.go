// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package singleflight_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/singleflight"
)

// A site is a handler that serves the pages of a slow backend and caches them.
type site struct {
	backend string
	group   singleflight.Group
	cache   sync.Map // from path to page; a real cache has limits
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.EscapedPath()
	page, ok := s.cache.Load(path)
	if !ok {
		var err error
		page, err, _ = singleflight.DoContext(r.Context(), &s.group, path, func(ctx context.Context) (string, error) {
			return s.load(ctx, path)
		})
		if err != nil {
			log.Printf("page %q: %v", path, err)
			http.Error(w, "cannot get the page", http.StatusBadGateway)
			return
		}
	}
	fmt.Fprint(w, page)
}

// load looks in the cache again: another call may have stored the page since.
func (s *site) load(ctx context.Context, path string) (page string, err error) {
	defer panicToError(&err)
	if page, ok := s.cache.Load(path); ok {
		return page.(string), nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.backend+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body) // here, as ctx is canceled when load returns
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("get %s: %s", path, resp.Status)
	}
	s.cache.Store(path, string(body))
	return string(body), nil
}

// panicToError, if deferred, makes a panic the error of the function that deferred it.
func panicToError(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("panic: %v\n\n%s", v, debug.Stack())
	}
}

// A hundred clients ask an HTTP handler for one page, and it asks the slow backend
// once. Since fn's context has no deadline, fn sets a timeout. It also recovers from
// its panics: if all clients have left, net/http cannot, and the process would crash.
func Example() {
	const clients = 100
	var came sync.WaitGroup
	came.Add(clients)

	var requests atomic.Int64
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		came.Wait() // so slow that all clients come meanwhile
		fmt.Fprint(w, "the page ", r.URL.Path)
	}))
	defer backend.Close()

	handler := &site{backend: backend.URL}
	pages := make(chan string)
	for range clients {
		go func() {
			came.Done()
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/news", nil))
			pages <- w.Body.String()
		}()
	}
	served := make(map[string]int)
	for range clients {
		served[<-pages]++
	}
	fmt.Println("served:", served)
	fmt.Println("requests to the backend:", requests.Load())
	// Output:
	// served: map[the page /news:100]
	// requests to the backend: 1
}

// The key contains everything that the result depends on, here the tenant and the
// file. Quoting the parts keeps them apart: joined by + alone, these two keys would
// be the same, and one tenant would get the file of the other.
func ExampleGroup_compoundKey() {
	var group singleflight.Group
	started := make(chan struct{})
	read := func(tenant, file string) <-chan singleflight.Result {
		key := fmt.Sprintf("%q %q", tenant, file)
		return group.DoChan(key, func() (any, error) {
			<-started
			return fmt.Sprintf("file %s of tenant %s", file, tenant), nil
		})
	}

	one, other := read("acme", "2/plan"), read("acme2", "/plan")
	close(started)
	fmt.Println((<-one).Val)
	fmt.Println((<-other).Val)
	// Output:
	// file 2/plan of tenant acme
	// file /plan of tenant acme2
}

// A Group suppresses calls only while one is in flight and is not a cache: a call
// that starts after the last one has ended runs its function again.
func ExampleGroup_Do() {
	var group singleflight.Group
	loads := 0
	for range 2 {
		v, err, shared := group.Do("user 42", func() (any, error) {
			loads++
			return "Ann", nil
		})
		if err != nil {
			fmt.Println(err) // v may be nil: do not assert its type
			continue
		}
		fmt.Println(v.(string), shared)
	}
	fmt.Println("loads:", loads)
	// Output:
	// Ann false
	// Ann false
	// loads: 2
}

// A caller stops waiting when its own context is done. fn has no context in DoChan, so
// the work goes on and finishes. fn recovers from its panics: since the caller was
// given a channel, one would crash the process.
func ExampleGroup_DoChan() {
	var group singleflight.Group
	answer, stored := make(chan string), make(chan string, 1)
	report := func(ctx context.Context) (any, error) {
		results := group.DoChan("report", func() (v any, err error) {
			defer panicToError(&err)
			r := <-answer // takes long
			stored <- r
			return r, nil
		})
		select {
		case r := <-results:
			return r.Val, r.Err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := report(ctx)
	fmt.Println("caller:", err)
	answer <- "the report"
	fmt.Println("stored:", <-stored)
	// Output:
	// caller: context canceled
	// stored: the report
}

// When the last caller has left, fn's context is canceled, and the next caller starts
// a new call. fn must use the context that it is given: the caller's own may be done
// while others still wait.
func ExampleGroup_DoContext() {
	var group singleflight.Group
	started, stopped := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-started
		cancel()
	}()

	_, err, _ := group.DoContext(ctx, "report", func(ctx context.Context) (any, error) {
		close(started)
		<-ctx.Done()
		stopped <- ctx.Err()
		return nil, ctx.Err()
	})
	fmt.Println("caller:", err)
	fmt.Println("fn:", <-stopped)

	v, err, _ := group.DoContext(context.Background(), "report", func(context.Context) (any, error) {
		return "the report", nil
	})
	fmt.Println("next caller:", v, err)
	// Output:
	// caller: context canceled
	// fn: context canceled
	// next caller: the report <nil>
}

// fn's context has no deadline, even if every caller's has one, and is not canceled
// while callers keep coming. So fn sets a timeout: otherwise, on a busy key, all
// callers would join one stuck call.
func ExampleGroup_DoContext_timeout() {
	var group singleflight.Group
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()

	_, err, _ := group.DoContext(ctx, "report", func(ctx context.Context) (any, error) {
		_, ok := ctx.Deadline()
		fmt.Println("fn's context has a deadline:", ok)
		ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		<-ctx.Done() // a backend that does not answer
		return nil, ctx.Err()
	})
	fmt.Println("result:", err)
	fmt.Println("caller's context:", ctx.Err())
	// Output:
	// fn's context has a deadline: false
	// result: context deadline exceeded
	// caller's context: <nil>
}

// A cache is invalidated while a value is being loaded. Forget makes later callers
// load the value again. But the forgotten fn still runs, and it would store a value
// that is out of date. So fn stores nothing if the revision has changed since it began.
func ExampleGroup_Forget() {
	var group singleflight.Group
	var mu sync.Mutex // guards cache and revision
	cache, revision := make(map[string]int), 0
	get := func(key string, load func() (int, error)) (int, error) {
		v, err, _ := singleflight.Do(&group, key, func() (int, error) {
			mu.Lock()
			v, ok := cache[key]
			before := revision
			mu.Unlock()
			if ok {
				return v, nil
			}
			v, err := load()
			mu.Lock()
			defer mu.Unlock()
			if err == nil && revision == before {
				cache[key] = v
			}
			return v, err
		})
		return v, err
	}
	invalidate := func(key string) {
		mu.Lock()
		defer mu.Unlock()
		revision++
		delete(cache, key)
		group.Forget(key)
	}

	reading, answer, ended := make(chan bool), make(chan int), make(chan bool)
	oldPrice := func() (int, error) { close(reading); return <-answer, nil }
	newPrice := func() (int, error) { return 12, nil }
	go func() { get("price", oldPrice); close(ended) }()
	<-reading
	invalidate("price") // after it has changed
	fmt.Println(get("price", newPrice))
	answer <- 10
	<-ended
	fmt.Println(get("price", newPrice))
	// Output:
	// 12 <nil>
	// 12 <nil>
}

// This fn heeds no context, so nothing ends it when it is stuck. A timer forgets the
// key, and the next caller starts a new call. If the timer fires when fn has just
// ended, it can forget the next call instead, and then one more call starts.
func ExampleGroup_Forget_timer() {
	var group singleflight.Group
	forgotten := make(chan bool, 1)
	report := func(read func() string) <-chan singleflight.Result {
		return group.DoChan("report", func() (any, error) {
			timer := time.AfterFunc(time.Millisecond, func() {
				group.Forget("report")
				forgotten <- true
			})
			defer timer.Stop()
			return read(), nil
		})
	}

	answer := make(chan string)
	stuck := report(func() string { return <-answer })
	<-forgotten
	next := <-report(func() string { return "the report" })
	fmt.Println("next caller:", next.Val)
	answer <- "a late report"
	fmt.Println("stuck caller:", (<-stuck).Val)
	// Output:
	// next caller: the report
	// stuck caller: a late report
}

// A caller that gives up forgets its call unless another has joined it. Forget would
// forget a joined call, too, and the next caller would repeat work that is under way.
func ExampleGroup_ForgetUnshared() {
	var group singleflight.Group
	answer := make(chan struct{})
	lookup := func(host string) <-chan singleflight.Result {
		return group.DoChan(host, func() (any, error) {
			<-answer
			return "the address of " + host, nil
		})
	}

	lookup("a.example")
	fmt.Println("forgotten:", group.ForgetUnshared("a.example"))

	lookup("b.example")
	joiner := lookup("b.example")
	fmt.Println("forgotten:", group.ForgetUnshared("b.example"))
	close(answer)
	fmt.Println("joiner:", (<-joiner).Val)
	// Output:
	// forgotten: true
	// forgotten: false
	// joiner: the address of b.example
}

// Shared is true for every caller of a joined call, also for the one that started it.
// To count the callers that were spared the work, each sets a flag in its own fn. The
// flag is atomic, as fn may still run when its caller has left.
func ExampleResult() {
	var group singleflight.Group
	var worked [10]atomic.Bool
	var results [10]<-chan singleflight.Result
	joined := make(chan struct{})
	for i := range results {
		results[i] = group.DoChan("page", func() (any, error) {
			worked[i].Store(true)
			<-joined
			return "the page", nil
		})
	}
	close(joined)

	shared, spared := 0, 0
	for i := range results {
		if r := <-results[i]; r.Shared {
			shared++
		}
		if !worked[i].Load() {
			spared++
		}
	}
	fmt.Println("shared:", shared)
	fmt.Println("spared:", spared)
	// Output:
	// shared: 10
	// spared: 9
}

// The callers of a call get the same slice, not copies. A caller that changes it
// clones it first: otherwise the others would see the change. For maps, use maps.Clone.
func ExampleDo() {
	var group singleflight.Group
	started, joined := make(chan struct{}), make(chan struct{})
	load := func() ([]string, error) {
		close(started)
		<-joined
		return []string{"sync", "go", "cache"}, nil
	}

	var other <-chan singleflight.Result
	go func() {
		<-started
		other = group.DoChan("tags", func() (any, error) { return load() })
		close(joined)
	}()
	tags, err, _ := singleflight.Do(&group, "tags", load)
	tags = slices.Clone(tags)
	slices.Sort(tags)
	fmt.Println("sorted:", tags, err)
	fmt.Println("other caller:", (<-other).Val)
	// Output:
	// sorted: [cache go sync] <nil>
	// other caller: [sync go cache]
}

// Files include other files, so an fn asks for other keys. It passes on the context
// that it was given, so a cycle is reported as ErrRecursive. With the context of the
// first caller, or with Do, the calls would wait for each other forever.
func ExampleDoContext_recursion() {
	includes := map[string][]string{
		"app.conf":   {"db.conf", "log.conf"},
		"db.conf":    {"log.conf"},
		"left.conf":  {"right.conf"},
		"right.conf": {"left.conf"},
	}

	var group singleflight.Group
	var size func(ctx context.Context, name string) (int, error)
	size = func(ctx context.Context, name string) (int, error) {
		n, err, _ := singleflight.DoContext(ctx, &group, name, func(ctx context.Context) (int, error) {
			sum := 1
			for _, include := range includes[name] {
				n, err := size(ctx, include)
				if err != nil {
					return 0, fmt.Errorf("%s: %w", name, err)
				}
				sum += n
			}
			return sum, nil
		})
		return n, err
	}

	ctx := context.Background()
	fmt.Println(size(ctx, "app.conf"))
	_, err := size(ctx, "left.conf")
	fmt.Println("cycle:", errors.Is(err, singleflight.ErrRecursive))
	// Output:
	// 4 <nil>
	// cycle: true
}

// A caller recovers from fn's panic and reports it with the stack of the goroutine
// that fn panicked on. A value that is not a PanicError does not come from fn, so the
// caller panics with it again.
func ExamplePanicError() {
	var group singleflight.Group
	compile := func(pattern string) (re any, err error) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			var p singleflight.PanicError
			if e, ok := v.(error); !ok || !errors.As(e, &p) {
				panic(v)
			}
			fmt.Println("panic:", p.Value())
			fmt.Println("in MustCompile:", bytes.Contains(p.Stack(), []byte("regexp.MustCompile")))
			err = errors.New("bad pattern")
		}()
		re, err, _ = group.Do(pattern, func() (any, error) {
			return regexp.MustCompile(pattern), nil
		})
		return re, err
	}

	fmt.Println(compile("a("))
	// Output:
	// panic: regexp: Compile(`a(`): error parsing regexp: missing closing ): `a(`
	// in MustCompile: true
	// <nil> bad pattern
}
